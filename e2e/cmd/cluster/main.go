// Command cluster makes, enters and removes the test cluster of package
// cluster. `make cluster-up` and `make cluster-down` call it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/e2e/cluster"
	"github.com/blockmover/blockmover/e2e/cluster/artifacts"
)

// exitError carries the code of a command run by exec through cobra.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := root().ExecuteContext(ctx)
	var code exitError
	switch {
	case errors.As(err, &code):
		return int(code)
	case err != nil:
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	return 0
}

type options struct {
	name, cache string
	start       time.Time
	mu          sync.Mutex
}

func root() *cobra.Command {
	o := &options{start: time.Now()}
	cmd := &cobra.Command{
		Use:           "cluster",
		Short:         "A single-node Kubernetes with CSI, S3 and Velero for tests, on a bare Linux machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	name := os.Getenv("BLOCKMOVER_CLUSTER")
	if name == "" {
		name = "blockmover"
	}
	cmd.PersistentFlags().StringVar(&o.name, "name", name, "name of the cluster")
	cmd.PersistentFlags().StringVar(&o.cache, "cache", "", "directory of built artifacts (default $BLOCKMOVER_CACHE or ~/.cache/blockmover)")
	cmd.SetOut(os.Stdout) // the default of Print is stderr
	cmd.AddCommand(o.build(), o.up(), o.down(), o.status(), o.exec(), o.kubeconfig(), o.images(), o.velero(), supervise(), become())
	return cmd
}

func (o *options) report(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(o.start).Seconds(), fmt.Sprintf(format, args...))
}

func (o *options) artifacts() (*artifacts.Cache, error) {
	module, err := artifacts.FindModule()
	if err != nil {
		return nil, err
	}
	dir, err := o.cacheDir()
	if err != nil {
		return nil, err
	}
	return &artifacts.Cache{Dir: dir, Module: module, Report: o.report}, nil
}

func (o *options) cacheDir() (string, error) {
	if o.cache != "" {
		return filepath.Abs(o.cache)
	}
	return artifacts.DefaultDir()
}

func (o *options) cluster() (*cluster.Cluster, error) {
	dir, err := o.cacheDir()
	if err != nil {
		return nil, err
	}
	return cluster.New(o.name, dir)
}

func (o *options) build() *cobra.Command {
	return &cobra.Command{
		Use: "build", Short: "Fill the cache: binaries, container runtime, images", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cache, err := o.artifacts()
			if err != nil {
				return err
			}
			if err := cache.Build(cmd.Context()); err != nil {
				return err
			}
			if err := cache.BuildProducts(cmd.Context()); err != nil {
				return err
			}
			if _, err := cache.SaveImages(artifacts.AllImages()...); err != nil {
				return err
			}
			o.report("cache %s is up to date", cache.Dir)
			return nil
		},
	}
}

func (o *options) up() *cobra.Command {
	var velero, noBuild bool
	cmd := &cobra.Command{
		Use: "up", Short: "Start the cluster, after building what is missing", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			if !noBuild {
				cache, err := o.artifacts()
				if err != nil {
					return err
				}
				if err := cache.Build(cmd.Context()); err != nil {
					return err
				}
				if _, err := cache.SaveImages(artifacts.ClusterImages()...); err != nil {
					return err
				}
				o.report("cache is up to date")
			}
			switch err := c.Up(cmd.Context(), o.report); {
			case errors.Is(err, cluster.ErrRunning):
				o.report("cluster %s is running already", c.Name)
			case err != nil:
				return err
			default:
				o.report("cluster %s is up, state in %s", c.Name, c.State)
			}
			if !velero {
				return nil
			}
			return o.inside(c, "velero", "install")
		},
	}
	cmd.Flags().BoolVar(&velero, "velero", false, "install Velero too")
	cmd.Flags().BoolVar(&noBuild, "no-build", false, "trust the cache as it is")
	return cmd
}

// inside runs a subcommand of this command in the cluster's namespaces.
func (o *options) inside(c *cluster.Cluster, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	code, err := c.Exec(append([]string{self, "--name", c.Name, "--cache", c.Cache}, args...))
	if err == nil && code != 0 {
		return exitError(code)
	}
	return err
}

func (o *options) down() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Stop the cluster and remove everything that it left", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			if err := c.Down(cmd.Context()); err != nil {
				return err
			}
			o.report("cluster %s is gone", c.Name)
			return nil
		},
	}
}

func (o *options) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "List the components; fails when one is dead", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			status, err := c.Status()
			if err != nil {
				return err
			}
			for _, comp := range status.Components {
				state := "running"
				switch {
				case comp.Exited != "":
					state = comp.Exited
				case comp.Restarts > 0:
					state = fmt.Sprintf("running, %d restarts", comp.Restarts)
				}
				cmd.Printf("%-50s %s\n", comp.Name, state)
			}
			return status.Err()
		},
	}
}

func (o *options) exec() *cobra.Command {
	return &cobra.Command{
		Use: "exec -- COMMAND [ARG...]", Short: "Run a command in the cluster's namespaces", Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			code, err := c.Exec(args)
			if err == nil && code != 0 {
				return exitError(code)
			}
			return err
		},
	}
}

func (o *options) kubeconfig() *cobra.Command {
	return &cobra.Command{
		Use: "kubeconfig", Short: "Print the path of the kubeconfig (for use inside: cluster exec)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			cmd.Println(c.Kubeconfig())
			return nil
		},
	}
}

func (o *options) images() *cobra.Command {
	cmd := &cobra.Command{Use: "images", Short: "Images of the cluster"}
	var save bool
	load := &cobra.Command{
		Use: "load [NAME:TAG | ARCHIVE.tar]...", Short: "Make images from the cache's binaries and load them (default: the mover and the plugin)",
		RunE: func(cmd *cobra.Command, args []string) error {
			cache, err := o.artifacts()
			if err != nil {
				return err
			}
			if err := cache.BuildProducts(cmd.Context()); err != nil {
				return err
			}
			switch {
			case len(args) == 0 && save:
				args = artifacts.AllImages()
			case len(args) == 0: // the others come with up and velero install
				args = artifacts.ProductImages()
			}
			var archives []string
			for _, arg := range args {
				if filepath.Ext(arg) == ".tar" {
					archives = append(archives, arg)
					continue
				}
				saved, err := cache.SaveImages(arg)
				if err != nil {
					return err
				}
				archives = append(archives, saved...)
			}
			if save {
				for _, archive := range archives {
					cmd.Println(archive)
				}
				return nil
			}
			c, err := o.cluster()
			if err != nil {
				return err
			}
			for _, archive := range archives {
				if err := c.LoadImages(cmd.Context(), archive); err != nil {
					return err
				}
				o.report("%s loaded", filepath.Base(archive))
			}
			return nil
		},
	}
	load.Flags().BoolVar(&save, "save", false, "only make the archives, and print where they are")
	cmd.AddCommand(load)
	return cmd
}

func (o *options) velero() *cobra.Command {
	cmd := &cobra.Command{Use: "velero", Short: "Velero on the cluster"}
	cmd.AddCommand(&cobra.Command{
		Use: "install", Short: "Install Velero with its own CLI and wait until it works", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			if os.Getenv("BLOCKMOVER_CLUSTER_STATE") != c.State {
				return o.inside(c, "velero", "install")
			}
			return c.InstallVelero(cmd.Context(), o.report)
		},
	})
	return cmd
}

// supervise is PID 1 of a cluster, and with --supervisor the process below it.
func supervise() *cobra.Command {
	var state string
	var supervisor bool
	cmd := &cobra.Command{
		Use: "supervise", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Getpid() > 2 && !supervisor {
				return errors.New("this is PID 1 of a cluster's namespaces: use cluster up")
			}
			name, err := cmd.Flags().GetString("name")
			if err != nil {
				return err
			}
			cache, err := cmd.Flags().GetString("cache")
			if err != nil {
				return err
			}
			c := &cluster.Cluster{Name: name, State: state, Cache: cache}
			if supervisor {
				return c.Supervise()
			}
			return c.Init()
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "state directory")
	cmd.Flags().BoolVar(&supervisor, "supervisor", false, "be the supervisor")
	return cmd
}

// become is the inner side of exec.
func become() *cobra.Command {
	return &cobra.Command{
		Use: "become -- COMMAND [ARG...]", Hidden: true, Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := cluster.Become(args); err != nil {
				fmt.Fprintln(os.Stderr, "cluster exec:", err)
				return exitError(127) // as shells report it
			}
			return nil
		},
	}
}
