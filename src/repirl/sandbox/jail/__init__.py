"""What runs on the other side of the sandbox: servers, confinement, the value codec. Standard library only."""
