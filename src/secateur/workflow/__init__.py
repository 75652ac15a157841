"""What the command line and the public API do: steps that use several sub-packages."""
