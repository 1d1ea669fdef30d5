// A push as a function of Python's own calling convention: nothing is converted between Python and C.
//
// No header of Python or numpy is needed. What is called of Python comes as addresses from its stable interface, and
// numpy's arrays are read where numpy's own interface fixes their fields; the caller checks that with rn_python_sees
// before it uses rn_python_push.
#ifndef RUNNEL_PYTHON_H_
#define RUNNEL_PYTHON_H_

#include "runnel.h"

#ifdef __cplusplus
extern "C" {
#endif

// A program with one input and one output that takes the same number of frames again and again.
typedef struct rn_python_call {
  // Python's functions.
  unsigned long (*thread_ident)(void);
  void* (*save_thread)(void);
  void (*restore_thread)(void*);
  void* (*call_no_args)(void* callable);
  void (*incref)(void* object);
  // What the array must be: its type, its dtype (both by identity), its axes; and the thread that scratch belongs to.
  const void* array_type;
  const void* dtype;
  const intptr_t* shape;
  int32_t axes;
  int32_t nonfinite;
  unsigned long thread;
  // Of rn_push_on.
  rn_workers* workers;
  const rn_program* program;
  void* state;
  void* scratch;
  int64_t frames;
  void* const* outputs;
  const int64_t* capacity;
  int64_t* written;
  // What is returned: what `copy` returns where the output has `copied` frames, `empty` where it has none, and `none`
  // otherwise; then `code` says why, RN_OK where the output was written.
  int64_t copied;
  void* copy;
  void* empty;
  void* none;
  int32_t code;
} rn_python_call;

// The code where nothing was done: the array is another one than was agreed on.
#define RN_PYTHON_OTHER (-1)

// METH_O. self: a numpy array whose memory holds an rn_python_call. x: any object.
RN_API void* rn_python_push(void* self, void* x);

// What rn_python_push reads of an object that is a numpy array: its type, memory, dtype and shape; axes, and 1 where
// its memory is contiguous.
RN_API void rn_python_sees(const void* array, const void* pointers[4], int32_t numbers[2]);

#ifdef __cplusplus
}
#endif

#endif  // RUNNEL_PYTHON_H_
