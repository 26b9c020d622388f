package device_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/device/devicetest"
)

func TestContract(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		devicetest.Contract(t, func(_ *testing.T, data []byte) device.Writer { return device.NewMemory(data, 512) })
	})
	t.Run("file", func(t *testing.T) {
		devicetest.Contract(t, func(t *testing.T, data []byte) device.Writer {
			t.Helper()
			return openWriter(t, writeFile(t, t.TempDir(), data))
		})
	})
	t.Run("limited", func(t *testing.T) {
		devicetest.Contract(t, func(t *testing.T, data []byte) device.Writer {
			t.Helper()
			return device.LimitWriter(t.Context(), openWriter(t, writeFile(t, t.TempDir(), data)), 1<<40)
		})
	})
	t.Run("without a way to zero", func(t *testing.T) {
		devicetest.Contract(t, func(_ *testing.T, data []byte) device.Writer {
			return devicetest.Plain{Writer: device.NewMemory(data, 512)}
		})
	})
	t.Run("file in memory", func(t *testing.T) {
		devicetest.Contract(t, func(t *testing.T, data []byte) device.Writer {
			t.Helper()
			dir, err := os.MkdirTemp("/dev/shm", "device")
			if err != nil {
				t.Skip("no file system in memory")
			}
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
			return openWriter(t, writeFile(t, dir, data))
		})
	})
	for _, blockSize := range []int{512, 4096} {
		t.Run("loop device "+strconv.Itoa(blockSize), func(t *testing.T) {
			devicetest.Contract(t, func(t *testing.T, data []byte) device.Writer {
				t.Helper()
				// The kernel cannot access a last block that is not whole.
				data = data[:len(data)/blockSize*blockSize]
				d := openWriter(t, loopDevice(t, writeFile(t, t.TempDir(), data), blockSize))
				require.Equal(t, blockSize, d.BlockSize())
				require.True(t, d.(*device.File).Direct())
				return d
			})
		})
	}
}

func TestWriterRefusesADeviceInUse(t *testing.T) {
	loop := loopDevice(t, writeFile(t, t.TempDir(), make([]byte, 1<<20)), 512)
	first, err := device.OpenWriter(loop)
	require.NoError(t, err)
	_, err = device.OpenWriter(loop)
	require.ErrorIs(t, err, unix.EBUSY)
	require.NoError(t, first.Close())
}

// TestZeroTakesNoSpace: thin storage allocates nothing for zeros.
func TestZeroTakesNoSpace(t *testing.T) {
	const size = 16 << 20
	file := writeFile(t, t.TempDir(), bytes.Repeat([]byte{1}, size))
	d := openWriter(t, loopDevice(t, file, 512))
	require.NoError(t, d.Zero(block.Extent{Offset: 512, Length: size - 1024}))
	require.NoError(t, d.Sync())
	require.NoError(t, d.Close())
	var stat unix.Stat_t
	require.NoError(t, unix.Stat(file, &stat))
	require.Less(t, stat.Blocks*512, int64(size/2))
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, block.IsZero(data[512:size-512]))
	require.Equal(t, bytes.Repeat([]byte{1}, 512), data[:512])
	require.Equal(t, bytes.Repeat([]byte{1}, 512), data[size-512:])
}

func TestWriterRefusesAReadOnlyDevice(t *testing.T) {
	loop := loopDevice(t, writeFile(t, t.TempDir(), make([]byte, 1<<20)), 512, "--read-only")
	d, err := device.OpenWriter(loop)
	if err == nil { // the kernel allows the open and refuses the write
		_, err = d.WriteAt(make([]byte, 512), 0)
		require.NoError(t, d.Close())
	}
	require.Error(t, err)

	r, err := device.Open(loop)
	require.NoError(t, err)
	_, err = r.ReadAt(make([]byte, 100), 3)
	require.NoError(t, err)
	require.NoError(t, r.Close())
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "missing"), "/dev/null"} {
		_, err := device.Open(path)
		require.Error(t, err, path)
		_, err = device.OpenWriter(path)
		require.Error(t, err, path)
	}
}

func openWriter(t *testing.T, path string) device.Writer {
	t.Helper()
	d, err := device.OpenWriter(path)
	require.NoError(t, err)
	return d
}

func writeFile(t *testing.T, dir string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path
}

func loopDevice(t *testing.T, file string, blockSize int, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	args = append(args, "--find", "--show", "--sector-size", strconv.Itoa(blockSize), file)
	out, err := exec.Command("losetup", args...).CombinedOutput()
	if err != nil {
		t.Skipf("no loop devices: %v: %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { require.NoError(t, exec.Command("losetup", "--detach", loop).Run()) })
	return loop
}
