"""The run configuration: TOML files and the one schema that composes the packages' own settings."""
