"""Configuration machinery: frozen typed sections and the mistakes in them."""

from cbsim.config.section import ComponentConfig, Section

__all__ = ["ComponentConfig", "Section"]
