"""What is done to a model: one method per file or subpackage, formulas apart from models."""
