// Threads that share the work of a step. There are none unless a caller asks for them.
#ifndef RUNNEL_WORKERS_H_
#define RUNNEL_WORKERS_H_

#include <cstdint>

struct rn_workers;

namespace runnel {

// Runs task(context, 0), …, task(context, count - 1), count <= 32, each once, in any order and on any thread; the
// caller's is one of them. Returns the last result that is not 0, or 0. Without workers, or while another thread uses
// them, one after the other.
int32_t RunTasks(rn_workers* workers, int32_t (*task)(const void* context, int32_t index), const void* context,
                 int32_t count);

// The threads that share tasks, with the caller's: 1 without workers.
int32_t ThreadsOf(const rn_workers* workers);

}  // namespace runnel

#endif  // RUNNEL_WORKERS_H_
