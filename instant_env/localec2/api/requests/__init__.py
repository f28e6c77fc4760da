"""What a request says, before any action looks at it: rules that hold for every action and parameter."""
