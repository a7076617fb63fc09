"""Contracts of cellmill: Arrow schemas, cell-type ontologies, slide records. Imports pyarrow only."""
