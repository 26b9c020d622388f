package cli

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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
	u.PeakRSS = peakRSS()
	return u
}

// peakRSS reads the high-water mark of this program's memory. The one in rusage begins with
// that of the parent process.
func peakRSS() int64 {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0
	}
	defer f.Close() //nolint:errcheck // it was only read
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib int64
		if text, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			if _, err := fmt.Sscanf(text, "%d kB", &kib); err == nil {
				return kib << 10
			}
		}
	}
	return 0
}
