#include "emu/cuda_emu.h"

#include <setjmp.h>
#include <ucontext.h>

#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace posekd::emu {

uint3 thread_index, block_index;
dim3 block_dim, grid_dim;

namespace {

constexpr size_t kStackBytes = 256 * 1024;

enum class State { ready, block_barrier, warp_barrier, done };

struct Fiber {
  ucontext_t context;  // where the thread begins
  jmp_buf place;       // where it waits
  bool begun = false;
  char* stack = nullptr;
  State state = State::ready;
  uint3 index;
  unsigned linear = 0;
  unsigned mask = 0;
  const char* file = "";
  int line = 0;
  uint64_t published = 0;
  uint64_t received[32] = {};
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

struct Scheduler {
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  jmp_buf place;
  std::function<void()> thread;
  std::vector<unsigned char> shared;
  std::string error;
#if defined(__SANITIZE_ADDRESS__)
  void* main_fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_size = 0;
#endif
};

Order order = Order::forward;
unsigned grid_rows = 65535;  // the largest second and third dimension of a grid
std::vector<std::unique_ptr<char[]>> stacks;  // of the fibers; kept, because fresh memory for each launch is slow
std::mt19937 shuffler;
Scheduler* scheduler = nullptr;

// Jumps and not swapcontext, which asks the system for the signal mask each time: half of the emulation's time.
void switch_to_main(Fiber& fiber, bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fiber.fake_stack, scheduler->main_stack, scheduler->main_stack_size);
#else
  (void)last;
#endif
  if (!_setjmp(fiber.place)) _longjmp(scheduler->place, 1);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler->main_stack, &scheduler->main_stack_size);
#endif
  Fiber& fiber = *scheduler->current;
  try {
    scheduler->thread();
  } catch (const std::exception& exception) {
    scheduler->error = exception.what();
  }
  fiber.state = State::done;
  switch_to_main(fiber, true);
}

void resume(Fiber& fiber) {
  scheduler->current = &fiber;
  thread_index = fiber.index;
  fiber.state = State::ready;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler->main_fake_stack, fiber.stack, kStackBytes);
#endif
  if (!_setjmp(scheduler->place)) {
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler->main_fake_stack, nullptr, nullptr);
#endif
}

[[noreturn]] void diverged(const Fiber& a, const Fiber& b, const char* what) {
  std::ostringstream message;
  message << "posekd emulation: divergent " << what << " in block (" << block_index.x << ", " << block_index.y << ", "
          << block_index.z << "): thread " << a.linear << " waits at " << a.file << ":" << a.line << ", but thread "
          << b.linear;
  if (b.state == State::done)
    message << " has returned";
  else
    message << " waits at " << b.file << ":" << b.line;
  throw std::runtime_error(message.str());
}

// Whether b waits where a waits.
bool meets(const Fiber& a, const Fiber& b) {
  return b.state == a.state && b.line == a.line && !std::strcmp(a.file, b.file) && b.mask == a.mask;
}

// Releases a warp whose lanes all wait at one warp operation. Returns whether it did.
bool release_warp(std::vector<Fiber>& fibers, size_t first) {
  const size_t last = std::min(fibers.size(), first + 32);
  bool released = false;
  for (size_t i = first; i < last; ++i) {
    Fiber& a = fibers[i];
    if (a.state != State::warp_barrier) continue;
    bool complete = true;
    for (size_t j = first; j < last && complete; ++j)
      if (a.mask >> (j - first) & 1u) complete = meets(a, fibers[j]);
    if (!complete) continue;
    const unsigned mask = a.mask;
    for (size_t j = first; j < last; ++j)
      if (mask >> (j - first) & 1u)
        for (size_t k = first; k < last; ++k) fibers[j].received[k - first] = fibers[k].published;
    for (size_t j = first; j < last; ++j)
      if (mask >> (j - first) & 1u) fibers[j].state = State::ready;
    released = true;
  }
  return released;
}

bool release_block(std::vector<Fiber>& fibers) {
  for (const Fiber& fiber : fibers)
    if (fiber.state != State::block_barrier || !meets(fibers[0], fiber)) return false;
  for (Fiber& fiber : fibers) fiber.state = State::ready;
  return true;
}

void report_deadlock(const std::vector<Fiber>& fibers) {
  for (const Fiber& a : fibers)
    if (a.state == State::warp_barrier) {
      const size_t first = a.linear / 32 * 32;
      for (size_t j = first; j < std::min(fibers.size(), first + 32); ++j)
        if ((a.mask >> (j - first) & 1u) && !meets(a, fibers[j])) diverged(a, fibers[j], "warp operation");
    }
  for (const Fiber& a : fibers)
    if (a.state == State::block_barrier)
      for (const Fiber& b : fibers)
        if (!meets(a, b)) diverged(a, b, "__syncthreads");
}

void run_block() {
  std::vector<Fiber>& fibers = scheduler->fibers;
  std::fill(scheduler->shared.begin(), scheduler->shared.end(), 0xff);
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    fiber.state = State::ready;
    fiber.begun = false;
  }
  std::vector<size_t> visit(fibers.size());
  std::iota(visit.begin(), visit.end(), size_t{0});
  if (order == Order::reverse) std::reverse(visit.begin(), visit.end());
  for (;;) {
    if (order == Order::shuffled) std::shuffle(visit.begin(), visit.end(), shuffler);
    bool ran = false, all_done = true;
    for (size_t i : visit)
      if (fibers[i].state == State::ready) {
        resume(fibers[i]);
        if (!scheduler->error.empty()) throw std::runtime_error(scheduler->error);
        ran = true;
      }
    for (const Fiber& fiber : fibers) all_done = all_done && fiber.state == State::done;
    if (all_done) return;
    bool released = false;
    for (size_t first = 0; first < fibers.size(); first += 32) released = release_warp(fibers, first) || released;
    released = release_block(fibers) || released;
    if (!ran && !released) report_deadlock(fibers);
  }
}

void wait(State state, unsigned mask, const char* file, int line) {
  Fiber& fiber = *scheduler->current;
  fiber.state = state;
  fiber.mask = mask;
  fiber.file = file;
  fiber.line = line;
  switch_to_main(fiber, false);
}

}  // namespace

void set_order(Order new_order, unsigned seed) {
  order = new_order;
  shuffler.seed(seed);
}

void set_grid_rows(unsigned largest) { grid_rows = largest; }

void* dynamic_shared() { return scheduler->shared.data(); }

unsigned lane() { return scheduler->current->linear % 32; }

void barrier_block(const char* file, int line) { wait(State::block_barrier, 0, file, line); }

// Lanes that the block does not have cannot be waited for: a block's last warp may be partial.
void barrier_warp(unsigned mask, const char* file, int line) {
  const size_t first = scheduler->current->linear / 32 * 32;
  const size_t lanes = std::min<size_t>(32, scheduler->fibers.size() - first);
  const unsigned present = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1u;
  wait(State::warp_barrier, mask & present, file, line);
}

const uint64_t* exchange(unsigned mask, uint64_t bytes, const char* file, int line) {
  scheduler->current->published = bytes;
  barrier_warp(mask, file, line);
  return scheduler->current->received;
}

void run(const std::function<void()>& thread, dim3 grid, dim3 block, size_t shared_bytes) {
  const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64)
    throw std::runtime_error("posekd emulation: a block of " + std::to_string(threads) + " threads cannot be launched");
  if (shared_bytes > 227 * 1024)
    throw std::runtime_error("posekd emulation: " + std::to_string(shared_bytes) + " bytes of shared memory");
  if (grid.y > grid_rows || grid.z > grid_rows || grid.x > INT_MAX)
    throw std::runtime_error("posekd emulation: the grid exceeds CUDA's limits");
  Scheduler local;
  local.thread = thread;
  local.shared.resize(std::max<size_t>(shared_bytes, 16));
  local.fibers.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    local.fibers[i].linear = i;
    local.fibers[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    if (i == stacks.size()) stacks.emplace_back(new char[kStackBytes]);
    local.fibers[i].stack = stacks[i].get();
  }
  scheduler = &local;
  block_dim = block;
  grid_dim = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = {x, y, z};
        run_block();
      }
  scheduler = nullptr;
}

}  // namespace posekd::emu
