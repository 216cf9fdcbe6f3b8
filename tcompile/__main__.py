from tcompile.cli import main

main()
