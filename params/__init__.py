"""What people configure: YAML files, and the models that read and validate them."""
