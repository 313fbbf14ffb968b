// Python's lock, given up while native code computes, and never asked for again once the interpreter ends.
//
// A daemon thread that asks for the lock of an interpreter that ends is ended by Python from within, through C++ frames
// that can't be unwound: the process aborts. So `end` is called before (mgpt_edge/runtime/process.py), and threads that
// come back after it sleep until the process is gone.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <atomic>

class Released {
 public:
  Released() : thread_(PyEval_SaveThread()) {}
  ~Released() {
    returning().fetch_add(1);
    if (ended().load()) {
      returning().fetch_sub(1);
      while (true) pause();
    }
    PyEval_RestoreThread(thread_);
    returning().fetch_sub(1);
  }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

  // Called with the lock held: no thread asks for it after this returns.
  static void end() {
    ended().store(true);
    while (true) {
      PyThreadState* const thread = PyEval_SaveThread();
      usleep(1000);
      PyEval_RestoreThread(thread);
      if (returning().load() == 0) return;
    }
  }

 private:
  static std::atomic<bool>& ended() {
    static std::atomic<bool> value{false};
    return value;
  }
  // Threads that ask for the lock.
  static std::atomic<int>& returning() {
    static std::atomic<int> value{0};
    return value;
  }

  PyThreadState* thread_;
};
