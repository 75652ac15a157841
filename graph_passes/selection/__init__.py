"""Parts of token selection: budget, regions, gathered versions, validity, emission."""
