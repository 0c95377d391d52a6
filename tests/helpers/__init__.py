"""What tests share: doubles, tiny models, small projects. No test imports another test."""
