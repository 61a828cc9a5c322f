"""Pictures: their classes, blocks of them, and rows of batches."""
