"""Images, clips and codes by index, and the batches that training sees."""
