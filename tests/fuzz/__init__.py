"""Random ONNX graphs against the interpreter and ONNX Runtime; mutated files against crashes, hangs and stray errors."""
