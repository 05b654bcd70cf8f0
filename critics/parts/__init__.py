"""What several families of critics use."""
