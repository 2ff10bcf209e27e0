"""`python -m aiocache_aura demo`: a restaurant platform with and without the cache, every answer checked.

To be read in this order: `restaurants` is how the library is used, and all that an application would have; `traffic` is who uses it,
`ledger` checks the answers, `database` is SQLite, `lives` ends lives, `story` runs and tells it all.
"""
