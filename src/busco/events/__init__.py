"""From new objects in the landing bucket to deliveries and runs: S3's messages, their queue, and what is pending."""
