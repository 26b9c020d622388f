// Package heap bounds the memory of a process that moves data.
//
// What the data path has in use at once is some 60 MiB, whatever the size of the
// volume; but it is buffers that come and go, and by default the collector lets
// the garbage of them become as large as everything else together.
package heap

import (
	"os"
	"runtime"
	"runtime/debug"
)

// moving is how much a data path may have, garbage included.
const moving = 144 << 20

// Limit allows what is in use now, such as the index of a repository that was
// just opened, and what a data path needs beside it. It is a soft limit: where it
// is too low, the process collects more often. The environment variable GOMEMLIMIT
// takes precedence.
func Limit() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetMemoryLimit(int64(m.Sys-m.HeapReleased) + moving)
}
