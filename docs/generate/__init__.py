"""Pages of the site that are made from the code, and pages of the repository as the site has them."""
