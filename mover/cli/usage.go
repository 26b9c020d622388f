package cli

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/mover/heap"
)

// usage is what the process has used of the machine.
type usage struct {
	CPUSeconds float64 `json:"cpuSeconds"`
	// PeakRSS is bytes.
	PeakRSS int64 `json:"peakRSS"`
}

// currentUsage returns the usage of this process so far. What is not known is 0.
func currentUsage() usage {
	var u usage
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err == nil {
		u.CPUSeconds = time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
	}
	u.PeakRSS, _ = heap.Peak(os.Getpid())
	return u
}
