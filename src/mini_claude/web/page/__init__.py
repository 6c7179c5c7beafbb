"""The web page, in a process of its own. Only this package imports Gradio."""
