"""What each command does: read arguments, call the workflow, print tables or JSON."""
