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

enum class State { ready, cluster_barrier, block_barrier, warp_barrier, done };

// A copy that has been asked for and not waited for.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  ucontext_t context;  // where the thread begins
  jmp_buf place;       // where it waits
  bool begun = false;
  char* stack = nullptr;
  State state = State::ready;
  uint3 index;
  uint3 block;          // blockIdx
  unsigned rank = 0;    // of the block in its cluster
  unsigned linear = 0;  // in the block
  unsigned mask = 0;
  const char* file = "";
  int line = 0;
  uint64_t published = 0;
  uint64_t received[32] = {};
  std::vector<Copy> copies;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

// What runs at a time: the blocks of one cluster, which is one block unless the launch says otherwise.
struct Scheduler {
  std::vector<Fiber> fibers;  // of the cluster's blocks, one block after the other
  size_t block_threads = 0;
  Fiber* current = nullptr;
  jmp_buf place;
  std::function<void()> thread;
  std::vector<std::vector<unsigned char>> shared;  // of each block of the cluster
  std::string error;
#if defined(__SANITIZE_ADDRESS__)
  void* main_fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_size = 0;
#endif
};

Order order = Order::forward;
unsigned grid_rows = 65535;                   // the largest second and third dimension of a grid
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
  block_index = fiber.block;
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
  message << "posekd emulation: divergent " << what << " in block (" << a.block.x << ", " << a.block.y << ", "
          << a.block.z << "): thread " << a.linear << " waits at " << a.file << ":" << a.line << ", but thread "
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
bool release_warp(std::vector<Fiber>& fibers, size_t first, size_t last) {
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

// Releases all threads from `first` to `last` if they wait at one barrier of that kind. Returns whether it did.
bool release(std::vector<Fiber>& fibers, State barrier, size_t first, size_t last) {
  for (size_t i = first; i < last; ++i)
    if (fibers[i].state != barrier || !meets(fibers[first], fibers[i])) return false;
  for (size_t i = first; i < last; ++i) fibers[i].state = State::ready;
  return true;
}

bool release_blocks(std::vector<Fiber>& fibers) {
  bool released = release(fibers, State::cluster_barrier, 0, fibers.size());
  const size_t threads = scheduler->block_threads;
  for (size_t block = 0; block < fibers.size(); block += threads) {
    for (size_t first = block; first < block + threads; first += 32)
      released = release_warp(fibers, first, std::min(block + threads, first + 32)) || released;
    released = release(fibers, State::block_barrier, block, block + threads) || released;
  }
  return released;
}

void report_deadlock(const std::vector<Fiber>& fibers) {
  const size_t threads = scheduler->block_threads;
  for (size_t i = 0; i < fibers.size(); ++i) {
    const Fiber& a = fibers[i];
    if (a.state != State::warp_barrier) continue;
    const size_t first = i - a.linear % 32, last = std::min(first + 32, i - a.linear + threads);
    for (size_t j = first; j < last; ++j)
      if ((a.mask >> (j - first) & 1u) && !meets(a, fibers[j])) diverged(a, fibers[j], "warp operation");
  }
  for (size_t i = 0; i < fibers.size(); ++i) {
    const Fiber& a = fibers[i];
    if (a.state != State::block_barrier) continue;
    for (size_t j = i - a.linear; j < i - a.linear + threads; ++j)
      if (!meets(a, fibers[j])) diverged(a, fibers[j], "__syncthreads");
  }
  for (const Fiber& a : fibers)
    if (a.state == State::cluster_barrier)
      for (const Fiber& b : fibers)
        if (!meets(a, b)) diverged(a, b, "cluster barrier");
}

void start(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
  fiber.state = State::ready;
  fiber.begun = false;
  fiber.copies.clear();
}

void run_cluster() {
  std::vector<Fiber>& fibers = scheduler->fibers;
  for (auto& shared : scheduler->shared) std::fill(shared.begin(), shared.end(), 0xff);
  for (Fiber& fiber : fibers) start(fiber);
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
    if (!release_blocks(fibers) && !ran) report_deadlock(fibers);
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

void* dynamic_shared() { return scheduler->shared[scheduler->current->rank].data(); }

unsigned lane() { return scheduler->current->linear % 32; }

unsigned cluster_rank() { return scheduler->current->rank; }

unsigned cluster_size() { return static_cast<unsigned>(scheduler->shared.size()); }

void* shared_of_rank(void* mine, unsigned rank) {
  const auto* here = scheduler->shared[scheduler->current->rank].data();
  return scheduler->shared[rank].data() + (static_cast<const unsigned char*>(mine) - here);
}

void barrier_block(const char* file, int line) { wait(State::block_barrier, 0, file, line); }

void barrier_cluster(const char* file, int line) { wait(State::cluster_barrier, 0, file, line); }

// Lanes that the block does not have cannot be waited for: a block's last warp may be partial.
void barrier_warp(unsigned mask, const char* file, int line) {
  const size_t first = scheduler->current->linear / 32 * 32;
  const size_t lanes = std::min<size_t>(32, scheduler->block_threads - first);
  const unsigned present = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1u;
  wait(State::warp_barrier, mask & present, file, line);
}

const uint64_t* exchange(unsigned mask, uint64_t bytes, const char* file, int line) {
  scheduler->current->published = bytes;
  barrier_warp(mask, file, line);
  return scheduler->current->received;
}

void copy_later(void* to, const void* from, size_t bytes) { scheduler->current->copies.push_back({to, from, bytes}); }

void finish_copies() {
  for (const Copy& copy : scheduler->current->copies) std::memcpy(copy.to, copy.from, copy.bytes);
  scheduler->current->copies.clear();
}

void run(const std::function<void()>& thread, dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster) {
  const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64)
    throw std::runtime_error("posekd emulation: a block of " + std::to_string(threads) + " threads cannot be launched");
  if (shared_bytes > 227 * 1024)
    throw std::runtime_error("posekd emulation: " + std::to_string(shared_bytes) + " bytes of shared memory");
  if (grid.y > grid_rows || grid.z > grid_rows || grid.x > INT_MAX)
    throw std::runtime_error("posekd emulation: the grid exceeds CUDA's limits");
  if (cluster == 0 || cluster > 8 || grid.x % cluster != 0)
    throw std::runtime_error("posekd emulation: " + std::to_string(grid.x) + " blocks in clusters of " +
                             std::to_string(cluster));
  Scheduler local;
  local.thread = thread;
  local.block_threads = threads;
  local.shared.resize(cluster);
  for (auto& shared : local.shared) shared.resize(std::max<size_t>(shared_bytes, 16));
  local.fibers.resize(threads * cluster);
  for (size_t i = 0; i < local.fibers.size(); ++i) {
    Fiber& fiber = local.fibers[i];
    const auto linear = static_cast<unsigned>(i % threads);
    fiber.linear = linear;
    fiber.rank = static_cast<unsigned>(i / threads);
    fiber.index = {linear % block.x, linear / block.x % block.y, linear / block.x / block.y};
    if (i == stacks.size()) stacks.emplace_back(new char[kStackBytes]);
    fiber.stack = stacks[i].get();
  }
  scheduler = &local;
  block_dim = block;
  grid_dim = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; x += cluster) {
        for (Fiber& fiber : local.fibers) fiber.block = {x + fiber.rank, y, z};
        run_cluster();
      }
  scheduler = nullptr;
}

}  // namespace posekd::emu
