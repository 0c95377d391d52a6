"""Language models: finding and loading them, rendering conversations for them, requesting replies."""
