// Command blockmover is the mover side of Blockmover in one binary: the manager that
// reconciles Velero's DataUploads and DataDownloads, the worker that moves the data in a
// mover pod, and local commands that need no cluster. Under the name kubectl-blockmover it is a
// plugin of kubectl.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/mover/cli"
	"github.com/blockmover/blockmover/mover/kubectl"
	"github.com/blockmover/blockmover/mover/worker"
)

// version is set by the linker.
var version = "dev"

func main() {
	root := newRootCommand()
	if strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe") == kubectl.Name {
		root = kubectl.NewCommand()
		root.AddCommand(newVersionCommand())
		root.SilenceUsage, root.SilenceErrors = true, true
	}
	if err := root.Execute(); err != nil {
		if !errors.Is(err, worker.ErrReported) {
			fmt.Fprintf(os.Stderr, "%s: %s\n", root.Name(), cli.OneLine(err))
		}
		os.Exit(1)
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "blockmover",
		Short:         "Block-level, incremental data mover for Velero",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newManagerCommand(), worker.NewCommand(), newVersionCommand())
	root.AddCommand(cli.NewCommands()...)
	plugin := kubectl.NewCommand()
	plugin.Use, plugin.Short = "kubectl", "The plugin of kubectl, under its other name"
	root.AddCommand(plugin)
	return root
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			cmd.Printf("blockmover %s %s\n", version, runtime.Version())
		},
	}
}
