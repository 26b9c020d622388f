// Package fscheck checks the file system on a restored volume with the programs that its authors
// wrote for that.
//
// The volume is a scratch copy of what a running machine had at one instant: a file system that was
// mounted, as after a loss of power. A mount would first replay its journal. So does Check where a
// program can do it without a mount:
//
//	ext2/3/4  e2fsck replays the journal and releases deleted files that were open, as a mount does.
//	          After that, e2fsck -fn looks at everything and changes nothing
//	xfs       only the kernel replays the log. xfs_repair -n looks at what is on disk without it. If
//	          that is consistent, it is sound. If it is not, the log may mend it: Unclear
//	btrfs     is always consistent on disk. btrfs check --readonly
//
// A file system that the tools cannot mend is found, and so is one that lost blocks on the way. What
// files contain is not looked at: that the image has what the volume had is what `image restore
// --verify` checks.
package fscheck

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Result is what came of a check.
type Result string

// Results.
const (
	// OK is a sound file system.
	OK Result = "ok"
	// Errors is one with errors.
	Errors Result = "errors"
	// None is a volume without a file system that is known. That is no error.
	None Result = "none"
	// Unclear is one with inconsistencies that a mount may mend.
	Unclear Result = "unclear"
	// Failed is a check that could not be made.
	Failed Result = "failed"
)

// Report says what was found.
type Report struct {
	Result Result `json:"result"`
	// Filesystem is what is on the volume: ext4, xfs, btrfs, or what else was recognized, or "".
	Filesystem string `json:"filesystem,omitempty"`
	// Detail says what was done before the check, and what the check has found, in its words.
	Detail string `json:"detail,omitempty"`
}

// prefix marks the line with the report among the output of the tools.
const prefix = "fscheck-report "

// Write writes the report as one line.
func (r Report) Write(out io.Writer) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("render report: %w", err)
	}
	_, err = fmt.Fprintf(out, "%s%s\n", prefix, text)
	return err
}

// Parse reads a line of output. It reports false for a line that is no report.
func Parse(line string) (Report, bool) {
	text, found := strings.CutPrefix(strings.TrimSpace(line), prefix)
	var r Report
	if !found || json.Unmarshal([]byte(text), &r) != nil {
		return Report{}, false
	}
	switch r.Result {
	case OK, Errors, None, Unclear, Failed:
		return r, true
	}
	return Report{}, false
}

// Run runs a program to its end, and returns what it printed and its exit code. The error is for a
// program that could not be run, or was killed.
type Run func(ctx context.Context, program string, args ...string) (output string, code int, err error)

// Check checks what is on a volume. Path is its device, for the programs.
func Check(ctx context.Context, volume io.ReaderAt, path string, run Run) Report {
	name, known := recognize(volume)
	c := checker{run: run, path: path, report: Report{Filesystem: name}}
	switch {
	case !known:
		c.report.Result = None
	case name == "xfs":
		c.xfs(ctx)
	case name == "btrfs":
		c.btrfs(ctx)
	default:
		c.ext(ctx, volume)
	}
	return c.report
}

// magics say what a volume holds. The first three are file systems that Check knows. A partition table
// comes last: a boot sector of FAT ends like one.
var magics = []struct {
	name   string
	known  bool
	offset int64
	magic  string
}{
	{"ext4", true, extSuperblock + 0x38, "\x53\xef"},
	{"xfs", true, 0, "XFSB"},
	{"btrfs", true, 64<<10 + 0x40, "_BHRfS_M"},
	{"LUKS", false, 0, "LUKS\xba\xbe"},
	{"LVM", false, 512, "LABELONE"},
	{"swap", false, 4086, "SWAPSPACE2"},
	{"NTFS", false, 3, "NTFS    "},
	{"FAT", false, 82, "FAT32   "},
	{"FAT", false, 54, "FAT1"},
	{"a partition table", false, 512, "EFI PART"},
	{"a partition table", false, 4096, "EFI PART"},
	{"a partition table", false, 510, "\x55\xaa"},
}

// recognize returns the name of what is on a volume, or "".
func recognize(volume io.ReaderAt) (name string, known bool) {
	for _, m := range magics {
		if string(at(volume, m.offset, len(m.magic))) == m.magic {
			return m.name, m.known
		}
	}
	return "", false
}

// at returns bytes of a volume, or nil if it has not so many.
func at(volume io.ReaderAt, offset int64, length int) []byte {
	b := make([]byte, length)
	if n, _ := volume.ReadAt(b, offset); n < length {
		return nil
	}
	return b
}

type checker struct {
	run    Run
	path   string
	report Report
	did    []string
}

// The superblock of ext2, ext3 and ext4, and fields of it: Linux, Documentation/filesystems/ext4/super.rst.
const (
	extSuperblock = 1024
	extState      = extSuperblock + 0x3a // 2: the kernel has noted errors
	extIncompat   = extSuperblock + 0x60 // 4: the journal has to be replayed

	extHasErrors = 2
	extRecover   = 4
)

// Exit codes of e2fsck(8) above those of success.
const (
	e2fsckUncorrected = 4
	e2fsckOperational = 8
)

func (c *checker) ext(ctx context.Context, volume io.ReaderAt) {
	word := func(offset int64) uint16 {
		if b := at(volume, offset, 2); b != nil {
			return binary.LittleEndian.Uint16(b)
		}
		return 0
	}
	if word(extIncompat)&extRecover != 0 {
		if !c.do(ctx, "e2fsck", "-p", "-E", "journal_only", c.path) {
			return
		}
		c.did = append(c.did, "the journal was replayed")
	}
	if word(extState)&extHasErrors == 0 {
		// As a mount does. Without these counters, it does no more than that.
		if !c.do(ctx, "tune2fs", "-c", "0", "-i", "0", c.path) || !c.do(ctx, "e2fsck", "-p", c.path) {
			return
		}
	} else {
		c.did = append(c.did, "the file system says itself that it has errors")
	}
	output, code, err := c.run(ctx, "e2fsck", "-fn", c.path)
	switch {
	case err != nil:
		c.failed("e2fsck", err.Error())
	case code&^(e2fsckUncorrected-1) == 0:
		c.end(OK, "")
	case code&e2fsckUncorrected != 0:
		c.end(Errors, findings(output, "e2fsck ", "Pass ", "Warning!"))
	default:
		c.failed("e2fsck", lastLines(output))
	}
}

func (c *checker) xfs(ctx context.Context) {
	output, code, err := c.run(ctx, "xfs_repair", "-n", c.path)
	dirty := strings.Contains(output, "ALERT: The filesystem has valuable metadata changes in a log")
	found := findings(output, "Phase ", "- ", "No modify flag set", "ALERT: The filesystem has valuable metadata changes",
		"ignored because the -n option", "which may be resolved by first mounting", "Cannot get host filesystem geometry",
		"Repair may fail if there is a sector size mismatch", "the image and the host filesystem")
	if dirty {
		c.did = append(c.did, "the log was not replayed")
	}
	switch {
	case err != nil:
		c.failed("xfs_repair", err.Error())
	case code == 0, code == 1 && dirty && found == "":
		c.end(OK, "")
	case code == 1 && dirty:
		c.end(Unclear, "only a mount can tell: "+found)
	case code == 1:
		c.end(Errors, found)
	default:
		c.failed("xfs_repair", lastLines(output))
	}
}

func (c *checker) btrfs(ctx context.Context) {
	output, code, err := c.run(ctx, "btrfs", "check", "--readonly", c.path)
	switch {
	case err != nil:
		c.failed("btrfs check", err.Error())
	case code == 0:
		c.end(OK, "")
	case code == 1:
		c.end(Errors, findings(output, "Opening filesystem to check", "Checking filesystem on", "UUID:", "["))
	default:
		c.failed("btrfs check", lastLines(output))
	}
}

// do runs a step that prepares the check of an ext4. A file system that is in no state for it is checked
// all the same, and the check says what is wrong.
func (c *checker) do(ctx context.Context, program string, args ...string) bool {
	output, code, err := c.run(ctx, program, args...)
	switch {
	case err != nil:
		c.failed(program, err.Error())
	case program == "e2fsck" && code >= e2fsckOperational && code&e2fsckUncorrected == 0:
		c.failed(program, lastLines(output))
	default:
		return true
	}
	return false
}

func (c *checker) failed(program, why string) {
	c.end(Failed, "could not run "+program+": "+why)
}

func (c *checker) end(result Result, detail string) {
	c.report.Result = result
	if detail != "" {
		c.did = append(c.did, detail)
	}
	c.report.Detail = strings.Join(c.did, "; ")
}

// maxFindings is how many lines of a program a detail has, and maxLine how many bytes of each. An annotation keeps it.
const (
	maxFindings = 3
	maxLine     = 400
)

// findings are the first lines of an output that do not begin as those about progress do.
func findings(output string, progress ...string) string {
	var found []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		about := line == ""
		for _, p := range progress {
			about = about || strings.HasPrefix(line, p)
		}
		if !about {
			found = append(found, brief(line))
		}
	}
	if len(found) > maxFindings {
		found = append(found[:maxFindings], fmt.Sprintf("and %d lines more", len(found)-maxFindings))
	}
	return strings.Join(found, " | ")
}

// lastLines is the end of an output.
func lastLines(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	lines = lines[max(0, len(lines)-maxFindings):]
	for i, line := range lines {
		lines[i] = brief(line)
	}
	return strings.Join(lines, " | ")
}

// brief cuts a line that is long, and takes out what a terminal would obey: names of files may be in it.
func brief(line string) string {
	if len(line) > maxLine {
		line = strings.ToValidUTF8(line[:maxLine], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, line)
}
