"""What is measured, who is measured, and how."""
