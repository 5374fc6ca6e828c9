"""The naive engine, the fast one, and their record."""
