"""The app of the deployment tests."""
