package filesystemtest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Run runs the tests of a package that mounts, in a mount namespace of its own. With the last process in it, the
// mounts go and their loop devices, however the test ends. Call it from TestMain.
func Run(m *testing.M) int {
	if err := enterPrivate(); err != nil {
		fmt.Fprintln(os.Stderr, "enter a mount namespace:", err)
		return 1
	}
	return m.Run()
}

// envPrivate tells this program, and the workers of a fuzz test, that they are in the namespace.
const envPrivate = "BLOCKMOVER_TEST_MOUNTS"

// enterPrivate begins this program anew in a mount namespace. Only a thread can enter one, so that is what becomes
// the program. Nobody but root can mount.
func enterPrivate() error {
	if os.Geteuid() != 0 || os.Getenv(envPrivate) != "" {
		return nil
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), envPrivate+"=private"))
}
