"""Side-by-side measurements; nothing here is a test. Each script prints the Markdown table that BUILD_NOTES.md quotes."""
