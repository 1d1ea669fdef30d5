#include "runnel_python.h"

namespace {

// The head of every Python object and the fields of a numpy array (PyArrayObject_fields).
struct Array {
  intptr_t references;
  const void* type;
  char* data;
  int axes;
  intptr_t* shape;
  intptr_t* strides;
  void* base;
  const void* dtype;
  int flags;
};
constexpr int kContiguous = 0x0001, kAligned = 0x0100;

bool Ready(const Array& array) { return (array.flags & (kContiguous | kAligned)) == (kContiguous | kAligned); }

bool Agreed(const rn_python_call& call, const Array& x) {
  if (x.type != call.array_type || x.dtype != call.dtype || x.axes != call.axes || !Ready(x)) return false;
  for (int i = 0; i < x.axes; ++i) {
    if (x.shape[i] != call.shape[i]) return false;
  }
  return call.thread_ident() == call.thread;
}

void* Given(const rn_python_call& call, void* object) {
  call.incref(object);
  return object;
}

}  // namespace

extern "C" void* rn_python_push(void* self, void* object) {
  rn_python_call& call = *reinterpret_cast<rn_python_call*>(static_cast<Array*>(self)->data);
  const Array& x = *static_cast<const Array*>(object);
  if (!Agreed(call, x)) {
    call.code = RN_PYTHON_OTHER;
    return Given(call, call.none);
  }
  const void* const inputs[] = {x.data};
  void* const thread = call.save_thread();
  call.code = rn_push_on(call.workers, call.program, call.state, call.scratch, inputs, call.frames, call.outputs,
                         call.capacity, call.written, call.nonfinite);
  call.restore_thread(thread);
  if (call.code == RN_OK) {
    const int64_t frames = call.written[0];
    if (frames == call.copied) return call.call_no_args(call.copy);
    if (frames == 0) return Given(call, call.empty);
  }
  return Given(call, call.none);
}

extern "C" void rn_python_sees(const void* array, const void* pointers[4], int32_t numbers[2]) {
  const Array& x = *static_cast<const Array*>(array);
  pointers[0] = x.type;
  pointers[1] = x.data;
  pointers[2] = x.dtype;
  pointers[3] = x.shape;
  numbers[0] = x.axes;
  numbers[1] = Ready(x);
}
