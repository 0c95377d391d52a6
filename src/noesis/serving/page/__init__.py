"""The page of `noesis serve --ui`: markup, style and scripts, put together into one file without a build step."""
