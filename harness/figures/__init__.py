"""What the rows say: reading, statistics, tables, comparison, reports and pictures."""
