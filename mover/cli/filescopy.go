package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/blockmover/blockmover/internal/filesystem/extract"
	"github.com/blockmover/blockmover/internal/filesystem/parts"
)

func newFilesCat(source FilesSource) *cobra.Command {
	cmd := &cobra.Command{Use: "cat PATH…", Short: "Write files to standard output"}
	return filesCommand(source, cmd, 1, func(ctx context.Context, d *parts.Disk, args []string) error {
		for _, at := range args {
			f, err := findFile(d, at, true)
			if err != nil {
				return err
			}
			if !f.info.Mode.IsRegular() {
				return fmt.Errorf("%q is no regular file, but a %s", at, typeOf(f.info.Mode))
			}
			if err := extract.WriteTo(ctx, f.part.Files, f.id, cmd.OutOrStdout()); err != nil {
				return fmt.Errorf("write %q: %w", at, err)
			}
		}
		return nil
	})
}

// transfer is a copy that is seen.
type transfer struct {
	messages io.Writer
	mu       sync.Mutex
	failed   int
	progress extract.Progress
}

// shownProblems is how many problems are printed at once. The others are counted.
const shownProblems = 1000

func (t *transfer) options() extract.Options {
	return extract.Options{Progress: &t.progress, Problem: func(path string, err error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if path == "" {
			path = "/"
		}
		if t.failed++; t.failed <= shownProblems {
			printLine(t.messages, "%s: %s", quoteName(path), OneLine(err))
		}
	}}
}

// run copies what the paths name, and says what came of it.
func (t *transfer) run(ctx context.Context, d *parts.Disk, paths []string, verb string, add func(context.Context, found) error, end func() (extract.Result, error)) error {
	sources := make([]found, 0, len(paths))
	var errs []error
	noted := map[string]bool{}
	for _, at := range paths {
		f, err := findFile(d, at, false)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, note := range f.part.Notes {
			if !noted[note] {
				printLine(t.messages, "note: %s", printable(note))
			}
			noted[note] = true
		}
		sources = append(sources, f)
	}
	if len(errs) == 0 {
		stop := startMeter(t.messages, verb, t.progress.Bytes.Load, func() int64 { return max(t.progress.Found.Load(), t.progress.Bytes.Load()) })
		for _, f := range sources {
			if err := add(ctx, f); err != nil {
				errs = append(errs, err)
				break
			}
		}
		stop()
	}
	result, err := end()
	if errs = append(errs, err); errors.Join(errs...) != nil {
		return errors.Join(errs...)
	}
	printLine(t.messages, "%d files, %s", result.Files, formatBytes(result.Bytes))
	lost := make([]string, 0, len(result.Lost))
	for what, n := range result.Lost {
		lost = append(lost, fmt.Sprintf("%s (%d files)", what, n))
	}
	sort.Strings(lost)
	if len(lost) > 0 {
		printLine(t.messages, "not kept: %s", strings.Join(lost, "; "))
	}
	if result.Failed > 0 {
		return fmt.Errorf("%s: %d files could not be copied", verb, result.Failed)
	}
	return nil
}

func newFilesCopy(source FilesSource) *cobra.Command {
	var o extract.Options
	cmd := &cobra.Command{
		Use:   "cp PATH… DIRECTORY",
		Short: "Copy files and directories into a directory",
		Long: `Copy files, and directories with all that is in them, into a directory of this
machine, which is made if it is not there. Of a root, what is in it is copied.

Modes, times, links, holes and extended attributes are kept, and as root owners,
too. Nothing that exists is replaced without --overwrite, and nothing outside of the
directory is written, whatever the image holds.`,
	}
	cmd.Flags().BoolVar(&o.Overwrite, "overwrite", false, "replace files that exist")
	cmd.Flags().BoolVar(&o.Special, "special", false, "keep setuid and setgid bits, device nodes, and the attributes security.* and trusted.*; only root can")
	return filesCommand(source, cmd, 2, func(ctx context.Context, d *parts.Disk, args []string) error {
		paths, directory := args[:len(args)-1], args[len(args)-1]
		for _, at := range paths {
			if _, err := findFile(d, at, false); err != nil {
				return err // before the directory is made
			}
		}
		if err := os.MkdirAll(directory, 0o777); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		t := &transfer{messages: cmd.ErrOrStderr()}
		options := t.options()
		options.Overwrite, options.Special = o.Overwrite, o.Special
		copier, err := extract.NewCopier(directory, options)
		if err != nil {
			return err
		}
		return t.run(ctx, d, paths, "cp", func(ctx context.Context, f found) error {
			return copier.Add(ctx, f.part.Files, f.id, f.name)
		}, copier.Close)
	})
}

func newFilesTar(source FilesSource) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tar PATH…",
		Short: "Write files and directories to standard output as a stream of tar",
		Long: `Write files, and directories with all that is in them, to standard output in the
format of tar (POSIX) with all metadata, for "tar --xattrs -x", which also makes the
holes of sparse files again. Sockets are left out.`,
	}
	return filesCommand(source, cmd, 1, func(ctx context.Context, d *parts.Disk, args []string) error {
		if f, ok := cmd.OutOrStdout().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return errors.New("standard output is a terminal: send the stream to a file or to tar")
		}
		t := &transfer{messages: cmd.ErrOrStderr()}
		out := bufio.NewWriterSize(cmd.OutOrStdout(), 1<<20)
		archiver := extract.NewArchiver(out, t.options())
		return t.run(ctx, d, args, "tar", func(ctx context.Context, f found) error {
			return archiver.Add(ctx, f.part.Files, f.id, f.name)
		}, func() (extract.Result, error) {
			if ctx.Err() != nil {
				return extract.Result{}, ctx.Err() // a stream that is not complete must not look complete
			}
			result, err := archiver.Close()
			return result, errors.Join(err, out.Flush())
		})
	})
}
