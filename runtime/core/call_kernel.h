// Calls a kernel with the pointers of an array.
#ifndef RUNNEL_CALL_KERNEL_H_
#define RUNNEL_CALL_KERNEL_H_

#include <cstddef>
#include <cstdint>

namespace runnel {

// A kernel takes as many pointers as it declares: calling through a type of another arity is undefined.
template <size_t>
using Pointer = void*;
template <size_t... kIndex>
struct Indices {};
template <size_t kCount, size_t... kIndex>
struct MakeIndices : MakeIndices<kCount - 1, kCount - 1, kIndex...> {};
template <size_t... kIndex>
struct MakeIndices<0, kIndex...> {
  using Type = Indices<kIndex...>;
};

template <size_t... kIndex>
int32_t CallWith(const uint8_t* kernel, void* const* a, Indices<kIndex...>) {
  return reinterpret_cast<int32_t (*)(Pointer<kIndex>...)>(reinterpret_cast<uintptr_t>(kernel))(a[kIndex]...);
}

inline int32_t CallKernel(const uint8_t* kernel, int32_t arguments, void* const* a) {
  switch (arguments) {
#define RUNNEL_CASE(n) \
  case n:              \
    return CallWith(kernel, a, MakeIndices<n>::Type())
    RUNNEL_CASE(1);
    RUNNEL_CASE(2);
    RUNNEL_CASE(3);
    RUNNEL_CASE(4);
    RUNNEL_CASE(5);
    RUNNEL_CASE(6);
    RUNNEL_CASE(7);
    RUNNEL_CASE(8);
    RUNNEL_CASE(9);
    RUNNEL_CASE(10);
    RUNNEL_CASE(11);
    RUNNEL_CASE(12);
    RUNNEL_CASE(13);
    RUNNEL_CASE(14);
    RUNNEL_CASE(15);
    RUNNEL_CASE(16);
#undef RUNNEL_CASE
    default:
      return -1;
  }
}

}  // namespace runnel

#endif  // RUNNEL_CALL_KERNEL_H_
