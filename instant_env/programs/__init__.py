"""Programs that have to be compiled: built on this machine for a recipe's image, never in an emulated guest.

`recipes/programs/<name>/` pins each; `program` reads it, `build` makes it once and keeps it in the cache, and
`golang`, `cargo` and `npm` know one kind of source each.
"""
