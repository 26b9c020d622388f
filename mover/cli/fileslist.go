package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/extract"
	"github.com/blockmover/blockmover/internal/filesystem/parts"
)

// File is what `files ls -o json` prints of a file, or of a part of a disk.
type File struct {
	// Path is as the command takes it. PathBytes has its bytes if it is not valid UTF-8.
	Path      string `json:"path"`
	PathBytes []byte `json:"pathBytes,omitempty"`
	// Type is file, directory, symlink, block, char, fifo, socket, unknown, or part.
	Type string `json:"type"`
	Size int64  `json:"size"`

	// Mode has the twelve bits in octal. The rest is of files.
	Mode     string     `json:"mode,omitempty"`
	UID      *uint32    `json:"uid,omitempty"`
	GID      *uint32    `json:"gid,omitempty"`
	Links    uint32     `json:"links,omitempty"`
	Modified *time.Time `json:"modified,omitempty"`
	Target   string     `json:"target,omitempty"`
	Major    uint32     `json:"major,omitempty"`
	Minor    uint32     `json:"minor,omitempty"`

	// Kind, Label, UUID, Notes and Reason are of parts. The Reason says why its files cannot be read.
	Kind   string   `json:"kind,omitempty"`
	Label  string   `json:"label,omitempty"`
	UUID   string   `json:"uuid,omitempty"`
	Notes  []string `json:"notes,omitempty"`
	Reason string   `json:"reason,omitempty"`
}

type listOptions struct {
	long, recursive, directory bool
	output                     string
	out, messages              io.Writer
}

func newFilesList(source FilesSource) *cobra.Command {
	o := &listOptions{}
	cmd := &cobra.Command{Use: "ls [PATH…]", Short: "List files, or the parts of a disk"}
	flags := cmd.Flags()
	flags.BoolVarP(&o.long, "long", "l", false, "with mode, owner, size and time")
	flags.BoolVarP(&o.recursive, "recursive", "R", false, "with all that is below")
	flags.BoolVarP(&o.directory, "directory", "d", false, "directories themselves, not what is in them")
	flags.StringVarP(&o.output, "output", "o", "text", "`format`: text, or json")
	return filesCommand(source, cmd, 0, func(ctx context.Context, d *parts.Disk, args []string) error {
		if o.output != "text" && o.output != "json" {
			return fmt.Errorf("output format is %q, want text or json", o.output)
		}
		o.out, o.messages = cmd.OutOrStdout(), cmd.ErrOrStderr()
		return o.run(ctx, d, args)
	})
}

func (o *listOptions) run(ctx context.Context, d *parts.Disk, args []string) error {
	if len(args) == 0 && (!d.Single() || d.Parts[0].Files == nil) {
		return o.print(partsOf(d))
	}
	if len(args) == 0 {
		args = []string{"/"}
	}
	var files []File
	failed := 0
	problem := func(path string, err error) {
		failed++
		printLine(o.messages, "%s: %s", quoteName(path), OneLine(err))
	}
	for _, at := range args {
		listed, err := o.list(ctx, d, at, problem)
		if err != nil {
			return err
		}
		files = append(files, listed...)
	}
	if err := o.print(files); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("ls: %d files or directories could not be read", failed)
	}
	return nil
}

// list returns what a path names: a file, or what is in a directory.
func (o *listOptions) list(ctx context.Context, d *parts.Disk, at string, problem func(string, error)) ([]File, error) {
	f, err := findFile(d, at, false)
	if err != nil {
		return nil, err
	}
	for _, note := range f.part.Notes {
		printLine(o.messages, "note: %s", printable(note))
	}
	if !f.info.Mode.IsDir() || o.directory {
		return []File{describe(f.part.Files, &extract.Item{Path: at, ID: f.id, Info: f.info}, problem)}, nil
	}
	var files []File
	err = extract.Walk(ctx, f.part.Files, f.id, func(item *extract.Item) error {
		if item.Path == "" {
			return nil
		}
		item.Path = path.Join(at, item.Path)
		files = append(files, describe(f.part.Files, item, problem))
		item.Skip = !o.recursive
		return nil
	}, func(below string, err error) { problem(path.Join(at, below), err) })
	sort.SliceStable(files, func(i, j int) bool { return files[i].Path < files[j].Path })
	return files, err
}

func partsOf(d *parts.Disk) []File {
	files := make([]File, 0, len(d.Parts))
	for _, p := range d.Parts {
		files = append(files, File{Path: p.Name, Type: "part", Size: p.Size, Kind: p.Kind, Label: p.Label, UUID: p.UUID, Notes: p.Notes, Reason: p.Reason})
	}
	return files
}

func describe(files filesystem.FileSystem, item *extract.Item, problem func(string, error)) File {
	info := item.Info
	f := File{Path: item.Path, Type: typeOf(info.Mode), Size: info.Size, Mode: fmt.Sprintf("%04o", filesystem.UnixMode(info.Mode)), UID: &info.UID, GID: &info.GID, Links: info.Links}
	if !utf8.ValidString(item.Path) {
		f.PathBytes = []byte(item.Path)
	}
	if !info.Modified.IsZero() {
		f.Modified = &info.Modified
	}
	switch {
	case info.Mode.Type() == fs.ModeSymlink:
		target, err := files.ReadLink(item.ID)
		if err != nil {
			problem(item.Path, err)
		}
		f.Target = target
	case info.Mode&fs.ModeDevice != 0:
		f.Major, f.Minor, f.Size = info.Major, info.Minor, 0
	case !info.Mode.IsRegular():
		f.Size = 0
	}
	return f
}

func typeOf(mode fs.FileMode) string {
	switch mode.Type() {
	case 0:
		return "file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symlink"
	case fs.ModeDevice:
		return "block"
	case fs.ModeDevice | fs.ModeCharDevice:
		return "char"
	case fs.ModeNamedPipe:
		return "fifo"
	case fs.ModeSocket:
		return "socket"
	default:
		return "unknown"
	}
}

func (o *listOptions) print(files []File) error {
	if o.output == "json" {
		encoder := json.NewEncoder(o.out)
		encoder.SetIndent("", "    ")
		if files == nil {
			files = []File{}
		}
		return encoder.Encode(files)
	}
	t := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
	if len(files) > 0 && files[0].Type == "part" {
		printLine(t, "PART\tKIND\tSIZE\tLABEL\tCANNOT BE READ")
	}
	for _, f := range files {
		switch {
		case f.Type == "part":
			printLine(t, "%s\t%s\t%s\t%s\t%s", quoteName(f.Path), orDash(f.Kind), formatBytes(f.Size), orDash(quoteName(f.Label)), orDash(printable(f.Reason)))
		case o.long:
			printLine(t, "%s", f.row())
		default:
			printLine(t, "%s", f.shown())
		}
	}
	return t.Flush()
}

// shown is the path with a mark of directories.
func (f File) shown() string {
	if f.Type == "directory" {
		return quoteName(f.Path) + "/"
	}
	return quoteName(f.Path)
}

func (f File) row() string {
	size, modified, target := strconv.FormatInt(f.Size, 10), "-", ""
	if f.Type == "block" || f.Type == "char" {
		size = fmt.Sprintf("%d, %d", f.Major, f.Minor)
	}
	if f.Modified != nil {
		modified = formatTime(*f.Modified)
	}
	if f.Type == "symlink" {
		target = " -> " + quoteName(f.Target)
	}
	return fmt.Sprintf("%s\t%s\t%d\t%d\t%s\t%s\t%s%s", f.Type, f.Mode, *f.UID, *f.GID, size, modified, f.shown(), target)
}

// quoteName shows a name. What a terminal would obey, and what is no text, is escaped as in Go: names are hostile, too.
func quoteName(name string) string {
	for _, r := range name {
		if r == utf8.RuneError || r == '\\' || !unicode.IsPrint(r) {
			quoted := strconv.Quote(name)
			return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
		}
	}
	return name
}
