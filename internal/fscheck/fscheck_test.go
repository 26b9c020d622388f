package fscheck_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
	"github.com/blockmover/blockmover/internal/fscheck"
	"github.com/blockmover/blockmover/internal/fuzztest"
)

// volume has bytes at an offset, and is zero otherwise.
func volume(put map[int]string) *bytes.Reader {
	b := make([]byte, 128<<10)
	for offset, text := range put {
		copy(b[offset:], text)
	}
	return bytes.NewReader(b)
}

const (
	ext4Magic    = 1024 + 0x38
	ext4State    = 1024 + 0x3a
	ext4Incompat = 1024 + 0x60
)

// answer is what a program does. Programs run in this order, and no others.
type answer struct {
	call   string
	output string
	code   int
	err    error
}

func play(t *testing.T, answers ...answer) fscheck.Run {
	t.Helper()
	t.Cleanup(func() { require.Empty(t, answers, "programs that were not run") })
	return func(_ context.Context, program string, args ...string) (string, int, error) {
		call := program + " " + strings.Join(args, " ")
		require.NotEmpty(t, answers, call)
		a := answers[0]
		answers = answers[1:]
		require.Equal(t, a.call, call)
		return a.output, a.code, a.err
	}
}

const dirtyLog = `Phase 1 - find and verify superblock...
Phase 2 - using internal log
        - zero log...
ALERT: The filesystem has valuable metadata changes in a log which is being
ignored because the -n option was used.  Expect spurious inconsistencies
which may be resolved by first mounting the filesystem to replay the log.
        - scan filesystem freespace and inode maps...
No modify flag set, skipping filesystem flush and exiting.
`

func TestCheck(t *testing.T) {
	ext := map[int]string{ext4Magic: "\x53\xef"}
	unclean := map[int]string{ext4Magic: "\x53\xef", ext4Incompat: "\x04"}
	marked := map[int]string{ext4Magic: "\x53\xef", ext4State: "\x02"}
	xfs, btrfs := map[int]string{0: "XFSB"}, map[int]string{65600: "_BHRfS_M"}
	replay, tune := answer{call: "e2fsck -p -E journal_only d"}, answer{call: "tune2fs -c 0 -i 0 d"}
	preen := answer{call: "e2fsck -p d"}
	fn := func(code int, output string) answer { return answer{call: "e2fsck -fn d", output: output, code: code} }
	repair := func(code int, output string) answer {
		return answer{call: "xfs_repair -n d", output: output, code: code}
	}
	damage := "e2fsck 1.47\nPass 1: Checking\nInode 12 is bad\nx\ny\nz\n"
	for name, tc := range map[string]struct {
		content map[int]string
		runs    []answer
		want    fscheck.Report
	}{
		"ext4":                        {ext, []answer{tune, preen, fn(0, "")}, fscheck.Report{Result: fscheck.OK, Filesystem: "ext4"}},
		"ext4 after a loss of power":  {unclean, []answer{replay, tune, preen, fn(0, "")}, fscheck.Report{Result: fscheck.OK, Filesystem: "ext4", Detail: "the journal was replayed"}},
		"ext4 with errors":            {ext, []answer{{call: tune.call, code: 1}, {call: "e2fsck -p d", code: 12}, fn(12, damage)}, fscheck.Report{Result: fscheck.Errors, Filesystem: "ext4", Detail: "Inode 12 is bad | x | y | and 1 lines more"}},
		"ext4 that knows of its own":  {marked, []answer{fn(4, "Inode 12\n")}, fscheck.Report{Result: fscheck.Errors, Filesystem: "ext4", Detail: "the file system says itself that it has errors; Inode 12"}},
		"ext4 without a journal":      {unclean, []answer{{call: replay.call, code: 8, output: "no\njournal\n"}}, fscheck.Report{Result: fscheck.Failed, Filesystem: "ext4", Detail: "could not run e2fsck: no | journal"}},
		"ext4 and no tune2fs":         {ext, []answer{{call: tune.call, err: errors.New("not found")}}, fscheck.Report{Result: fscheck.Failed, Filesystem: "ext4", Detail: "could not run tune2fs: not found"}},
		"ext4 out of time":            {ext, []answer{tune, preen, {call: "e2fsck -fn d", err: context.DeadlineExceeded}}, fscheck.Report{Result: fscheck.Failed, Filesystem: "ext4", Detail: "could not run e2fsck: context deadline exceeded"}},
		"ext4 that cannot be checked": {ext, []answer{tune, preen, fn(8, "out of memory\n")}, fscheck.Report{Result: fscheck.Failed, Filesystem: "ext4", Detail: "could not run e2fsck: out of memory"}},
		"xfs":                         {xfs, []answer{repair(0, "Phase 1 - find\n")}, fscheck.Report{Result: fscheck.OK, Filesystem: "xfs"}},
		"xfs with a log":              {xfs, []answer{repair(1, dirtyLog)}, fscheck.Report{Result: fscheck.OK, Filesystem: "xfs", Detail: "the log was not replayed"}},
		"xfs with a log and findings": {xfs, []answer{repair(1, dirtyLog+"bad magic\n")}, fscheck.Report{Result: fscheck.Unclear, Filesystem: "xfs", Detail: "the log was not replayed; only a mount can tell: bad magic"}},
		"xfs with errors":             {xfs, []answer{repair(1, "Phase 1 - find\nbad magic\n")}, fscheck.Report{Result: fscheck.Errors, Filesystem: "xfs", Detail: "bad magic"}},
		"xfs that cannot be checked":  {xfs, []answer{repair(2, "oh\n")}, fscheck.Report{Result: fscheck.Failed, Filesystem: "xfs", Detail: "could not run xfs_repair: oh"}},
		"xfs and no program":          {xfs, []answer{{call: "xfs_repair -n d", err: errors.New("gone")}}, fscheck.Report{Result: fscheck.Failed, Filesystem: "xfs", Detail: "could not run xfs_repair: gone"}},
		"btrfs":                       {btrfs, []answer{{call: "btrfs check --readonly d"}}, fscheck.Report{Result: fscheck.OK, Filesystem: "btrfs"}},
		"btrfs with errors":           {btrfs, []answer{{call: "btrfs check --readonly d", code: 1, output: "[1/7] checking\nparent transid verify failed\n"}}, fscheck.Report{Result: fscheck.Errors, Filesystem: "btrfs", Detail: "parent transid verify failed"}},
		"btrfs and no program":        {btrfs, []answer{{call: "btrfs check --readonly d", err: errors.New("gone")}}, fscheck.Report{Result: fscheck.Failed, Filesystem: "btrfs", Detail: "could not run btrfs check: gone"}},
		"zeros":                       {nil, nil, fscheck.Report{Result: fscheck.None}},
		"partitions":                  {map[int]string{510: "\x55\xaa"}, nil, fscheck.Report{Result: fscheck.None, Filesystem: "a partition table"}},
		"FAT":                         {map[int]string{510: "\x55\xaa", 82: "FAT32   "}, nil, fscheck.Report{Result: fscheck.None, Filesystem: "FAT"}},
		"encrypted":                   {map[int]string{0: "LUKS\xba\xbe"}, nil, fscheck.Report{Result: fscheck.None, Filesystem: "LUKS"}},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, fscheck.Check(t.Context(), volume(tc.content), "d", play(t, tc.runs...)))
		})
	}
	require.Equal(t, fscheck.None, fscheck.Check(t.Context(), bytes.NewReader(nil), "d", play(t)).Result)
}

// TestLongLines: an annotation keeps the detail, and a terminal shows it, whatever a damaged file system makes a
// program print.
func TestLongLines(t *testing.T) {
	ext := map[int]string{ext4Magic: "\x53\xef"}
	long := "Multiply-claimed \x1b[2J" + strings.Repeat(" 4711", 1<<19) + "\n"
	for code, want := range map[int]fscheck.Result{4: fscheck.Errors, 8: fscheck.Failed} {
		r := fscheck.Check(t.Context(), volume(ext), "d", play(t, answer{call: "tune2fs -c 0 -i 0 d"}, answer{call: "e2fsck -p d"},
			answer{call: "e2fsck -fn d", code: code, output: long + long}))
		require.Equal(t, want, r.Result)
		require.Less(t, len(r.Detail), 2000)
		require.Contains(t, r.Detail, "Multiply-claimed ?[2J 4711 4711")
	}
}

func TestParse(t *testing.T) {
	want := fscheck.Report{Result: fscheck.Errors, Filesystem: "ext4", Detail: "a \"b\"\nc"}
	var line strings.Builder
	require.NoError(t, want.Write(&line))
	require.Equal(t, 1, strings.Count(line.String(), "\n"))
	got, ok := fscheck.Parse(line.String())
	require.True(t, ok)
	require.Equal(t, want, got)
	for _, other := range []string{"", "Pass 1", "fscheck-report ", "fscheck-report {", `fscheck-report {"result":"fine"}`, `x fscheck-report {"result":"ok"}`} {
		_, ok := fscheck.Parse(other)
		require.False(t, ok, other)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`fscheck-report {"result":"ok"}`)
	f.Fuzz(func(t *testing.T, line string) {
		var r fscheck.Report
		var ok bool
		fuzztest.Document(t, len(line), func() { r, ok = fscheck.Parse(line) })
		if !ok {
			require.Zero(t, r)
			return
		}
		var again strings.Builder
		require.NoError(t, r.Write(&again))
		same, ok := fscheck.Parse(again.String())
		require.True(t, ok)
		require.Equal(t, r, same)
	})
}

// FuzzCheck: whatever a damaged file system makes a program print, the report is short, and a terminal obeys nothing of it.
func FuzzCheck(f *testing.F) {
	f.Add("XFSB", "bad magic\n\x1b[2Jfile\u202e", 1)
	f.Add("\x53\xef", "Pass 1\nMultiply-claimed\n", 4)
	f.Add("_BHRfS_M", "[1/7] checking\nERROR: x\n", 1)
	f.Fuzz(func(t *testing.T, magic, output string, code int) {
		device := make([]byte, 128<<10)
		for _, at := range []int{0, 1024 + 0x38, 64<<10 + 0x40} {
			copy(device[at:], magic)
		}
		var r fscheck.Report
		fuzztest.Device(t, bytes.NewReader(device), 64*uint64(len(output)), func(volume io.ReaderAt) {
			r = fscheck.Check(t.Context(), volume, "d", func(context.Context, string, ...string) (string, int, error) { return output, code, nil })
		})
		require.Less(t, len(r.Detail), 4096)
		require.NotContains(t, r.Detail, "\x1b")
		require.True(t, utf8.ValidString(r.Detail))
		var line strings.Builder
		require.NoError(t, r.Write(&line))
		again, ok := fscheck.Parse(line.String())
		require.True(t, ok)
		require.Equal(t, r, again)
	})
}

// Real programs on real file systems.
func TestRealFileSystems(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	format := func(t *testing.T, size int64, program string, args ...string) string {
		t.Helper()
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
		path := filepath.Join(t.TempDir(), "volume")
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.Truncate(path, size))
		out, err := exec.CommandContext(t.Context(), program, append(args, path)...).CombinedOutput()
		require.NoError(t, err, string(out))
		return path
	}
	check := func(t *testing.T, path string) fscheck.Report {
		t.Helper()
		file, err := os.Open(path)
		require.NoError(t, err)
		defer func() { _ = file.Close() }()
		return fscheck.Check(t.Context(), file, path, func(ctx context.Context, program string, args ...string) (string, int, error) {
			if _, err := exec.LookPath(program); err != nil {
				t.Skip(err)
			}
			cmd := exec.CommandContext(ctx, program, args...)
			out, err := cmd.CombinedOutput()
			t.Logf("%s %v: %v\n%s", program, args, err, out)
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				err = nil
			}
			return string(out), cmd.ProcessState.ExitCode(), err
		})
	}
	spoil := func(t *testing.T, path string, offset, length int64) {
		t.Helper()
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		require.NoError(t, err)
		_, err = file.WriteAt(bytes.Repeat([]byte{0x5a}, int(length)), offset)
		require.NoError(t, errors.Join(err, file.Close()))
	}
	t.Run("ext4", func(t *testing.T) {
		path := format(t, 64<<20, "mkfs.ext4", "-q", "-F", "-b", "4096")
		require.Equal(t, fscheck.Report{Result: fscheck.OK, Filesystem: "ext4"}, check(t, path))
		spoil(t, path, 64<<10, 1<<20) // the inode table of the first group
		r := check(t, path)
		require.Equal(t, fscheck.Errors, r.Result, r.Detail)
		require.NotEmpty(t, r.Detail)
	})
	t.Run("xfs", func(t *testing.T) {
		path := format(t, 320<<20, "mkfs.xfs", "-q", "-f")
		require.Equal(t, fscheck.OK, check(t, path).Result)
		spoil(t, path, 64<<10, 1<<20) // the first chunk of inodes
		r := check(t, path)
		require.Equal(t, fscheck.Errors, r.Result, r.Detail)
	})
	t.Run("btrfs", func(t *testing.T) {
		path := format(t, 128<<20, "mkfs.btrfs", "-q", "-f")
		require.Equal(t, fscheck.OK, check(t, path).Result)
	})
	// What a snapshot of a mounted file system has: an image of it while a deleted file is open.
	for kind, size := range map[string]int64{"ext4": 64 << 20, "xfs": 320 << 20} {
		t.Run(kind+" in use", func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root to mount")
			}
			path := format(t, size, "mkfs."+kind, "-q")
			dir := filesystemtest.Mount(t, path, "rw")
			open, err := os.Create(filepath.Join(dir, "open"))
			require.NoError(t, err)
			t.Cleanup(func() { _ = open.Close() })
			for _, name := range []string{"a", "b", "c"} {
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte(name), 1<<20), 0o600))
			}
			_, err = open.Write(deleted)
			require.NoError(t, err)
			require.NoError(t, os.Remove(open.Name()))
			out, err := exec.CommandContext(t.Context(), "sync", "-f", dir).CombinedOutput()
			require.NoError(t, err, string(out))
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			copied := filepath.Join(t.TempDir(), "copy")
			require.NoError(t, os.WriteFile(copied, content, 0o600))
			r := check(t, copied)
			require.Equal(t, fscheck.OK, r.Result, r.Detail)
			require.Contains(t, r.Detail, "replayed")
		})
	}
}

var deleted = bytes.Repeat([]byte("x"), 2<<20)
