# Read by llama.cpp's CMakeLists.txt right after its project(). Of libllama only graphs of some hundred nodes a step are
# made, so it is compiled in a few large pieces and without the optimisations that ggml's kernels get: half the time.
cmake_language(DEFER CALL set_target_properties llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 24)
cmake_language(DEFER CALL target_compile_options llama PRIVATE -O1)
