"""Pipeline: find blocks and linears, capture inputs, drive the parts, keep the journal."""
