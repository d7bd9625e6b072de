"""What ``vlm-reroute trace`` runs."""
