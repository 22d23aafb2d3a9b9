"""One folder per op: ``api`` (public function) -> ``op`` (registration) -> a backend module -> ``csrc``."""
