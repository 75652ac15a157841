"""What matters, on tensors: selectors, model families, reference runs (torch)."""

from secateur.import_guard import guard_import_name

guard_import_name(__name__, "secateur.models")
