"""Configuration machinery: frozen typed sections and the mistakes in them."""
