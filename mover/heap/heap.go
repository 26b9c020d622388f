// Package heap bounds the memory of a process that moves data.
//
// The data path uses some 80 MiB at once on two cores, whatever the size of the volume, and more
// with more workers. But its buffers come and go, and by default the garbage collector lets
// their garbage become as large as everything else together.
package heap

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/blockmover/blockmover/internal/datapath"
)

// moving returns how much memory a data path may use, including garbage. With less, the garbage collector takes the time of the cores: each
// time, it also frees the buffers that are kept for reuse.
func moving() int64 {
	// On a few cores, one or two packs are on their way at once; on many, each worker may have one.
	const few, perWorker = 144 << 20, 24 << 20
	return few + perWorker*int64(datapath.DefaultWorkers()-datapath.MinWorkers)
}

// Below returns what GOMEMLIMIT is in a container with a memory limit: a tenth is left for what is not heap.
func Below(limit int64) int64 { return limit / 10 * 9 }

// KeepBelow takes GOMEMLIMIT for the limit of the container, and stays below it. Without that variable it does
// nothing.
func KeepBelow() {
	if os.Getenv("GOMEMLIMIT") != "" {
		debug.SetMemoryLimit(Below(debug.SetMemoryLimit(-1)))
	}
}

// Peak returns the most memory that a process has had at once, in bytes. What rusage says begins with that of
// the parent process.
func Peak(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read peak memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("read peak memory of process %d: VmHWM is missing", pid)
}

// Limit limits the memory to what is in use now, such as the index of a repository that was
// just opened, and what a data path needs in addition. It is a soft limit: if it is too low,
// the garbage collector runs more often. The environment variable GOMEMLIMIT takes
// precedence.
func Limit() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetMemoryLimit(int64(m.Sys-m.HeapReleased) + moving())
}
