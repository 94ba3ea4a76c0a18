"""What ``syncagent check`` says: a comparison with a baseline as text, Markdown, SARIF and JUnit XML."""
